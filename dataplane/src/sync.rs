//! The engine's only lock.

use std::sync::{MutexGuard, PoisonError};

/// A mutex without poisoning: every critical section of the engine leaves its table consistent at
/// each step, and release builds abort on panic anyway.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
