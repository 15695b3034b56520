//! The configuration file: read, or refused in one line.

use std::path::Path;

use control::config::Config;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("v.toml")) {
        Ok(config) => assert!(config.daemon.worker_count() > 0),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error:?}");
            assert!(!error.message.contains('\n'), "{:?}", error.message);
            assert!(error.message.starts_with("v.toml"), "{:?}", error.message);
        }
    }
}
