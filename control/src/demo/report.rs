//! What the demo found: step by step for a person, as one object for a program.

use std::io::Write;

use serde::Serialize;

use crate::cli::output::Format;
use crate::lab;

/// What one step showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is what was expected.
    pub ok: bool,
    /// In words.
    pub text: String,
}

impl Seen {
    pub(super) fn new(ok: bool, text: impl Into<String>) -> Self {
        Self { ok, text: text.into() }
    }
}

/// One TCP stream's rate, ours and the kernel's. `null` when it was not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Throughput {
    pub vswitchd_gbps: Option<f64>,
    pub kernel_gbps: Option<f64>,
    pub ratio: Option<f64>,
}

impl Throughput {
    pub(super) fn new(vswitchd_gbps: f64, kernel_gbps: f64) -> Self {
        let ratio = (kernel_gbps > 0.0).then(|| vswitchd_gbps / kernel_gbps);
        Self {
            vswitchd_gbps: Some(rounded(vswitchd_gbps)),
            kernel_gbps: Some(rounded(kernel_gbps)),
            ratio: ratio.map(rounded),
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    detail: String,
}

/// Everything found so far. The fields are those of the contract, in its order.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    steps: Vec<Step>,
    pub throughput: Throughput,
    #[serde(skip)]
    format: Format,
}

impl Report {
    pub(super) fn new(format: Format) -> Self {
        Self { steps: Vec::new(), throughput: Throughput::default(), format }
    }

    /// Records a step and, for a person, prints it at once.
    pub(super) fn add(&mut self, name: &'static str, expected: &str, seen: &Seen) {
        // A step that a signal broke off has shown nothing.
        if seen.ok {
            lab::stay_if_ending();
        } else {
            lab::stay_if_interrupted();
        }
        if self.format == Format::Table {
            let mark = if seen.ok { " ok " } else { "FAIL" };
            say(&format!("[{mark}] {name}"));
            say(&format!("       expected  {expected}"));
            let mut lines = seen.text.lines();
            say(&format!("       seen      {}", lines.next().unwrap_or_default()));
            for line in lines {
                say(&format!("                 {line}"));
            }
        }
        let text = seen.text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let detail = format!("expected: {expected}; seen: {text}");
        self.steps.push(Step { name, ok: seen.ok, detail });
    }

    pub(super) fn all_ok(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// The last word: the object for a program, a line for a person.
    pub(super) fn finish(&self) {
        match self.format {
            Format::Json => match serde_json::to_string(self) {
                Ok(text) => say(&text),
                Err(error) => eprintln!("vswitchd demo: {error}"),
            },
            Format::Table => {
                let failed = self.steps.iter().filter(|step| !step.ok).count();
                say(&match failed {
                    0 => format!("all {} steps did what they say", self.steps.len()),
                    _ => format!("{failed} of {} steps failed", self.steps.len()),
                });
            }
        }
    }
}

/// Prints a line. A reader that went away (`| head`) must not keep us from cleaning up.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_fields_of_the_contract() {
        let mut report = Report::new(Format::Json);
        report.add("ping", "TTL 64", &Seen::new(true, "TTL 64\n  in 0.1 ms"));
        assert!(report.all_ok());
        report.add("snat", "200 OK", &Seen::new(false, "connection refused"));
        assert!(!report.all_ok());
        report.throughput = Throughput::new(9.0, 12.0);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"steps":[{"name":"ping","ok":true,"#,
                r#""detail":"expected: TTL 64; seen: TTL 64; in 0.1 ms"},"#,
                r#"{"name":"snat","ok":false,"#,
                r#""detail":"expected: 200 OK; seen: connection refused"}],"#,
                r#""throughput":{"vswitchd_gbps":9.0,"kernel_gbps":12.0,"ratio":0.75}}"#,
            )
        );
    }

    #[test]
    fn nothing_measured_is_no_ratio() {
        assert_eq!(Throughput::new(1.0, 0.0).ratio, None);
        assert_eq!(Throughput::default().vswitchd_gbps, None);
    }
}
