//! The engine's only lock, and the atomic words that its tables are made of.
//!
//! With the feature `shuttle`, which only the tests of `conntrack::interleavings` have, the scheduler of that
//! model checker decides before each of their operations who goes on. A word stays a plain one, as those of the
//! tables lie in mapped memory; so every order of operations is tried, and none of the weaker ones that a
//! processor may show.

use std::sync::PoisonError;

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::MutexGuard;

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::MutexGuard;

#[cfg(not(feature = "shuttle"))]
type Inner<T> = std::sync::Mutex<T>;

#[cfg(feature = "shuttle")]
type Inner<T> = shuttle::sync::Mutex<T>;

/// A mutex without poisoning: every critical section of the engine leaves its table consistent at
/// each step, and release builds abort on panic anyway.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(Inner<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Atomics of the tables.
#[cfg(not(feature = "shuttle"))]
pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};
}

/// Atomics of the tables, at which others may go on.
#[cfg(feature = "shuttle")]
pub(crate) mod atomic {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    /// Here another thread may go on. In a model without time that is all that sleeping does; a yield would tell
    /// the scheduler that nothing is to be done here.
    fn turn() {
        shuttle::thread::sleep(Duration::ZERO);
    }

    /// Those operations that the tables use.
    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            /// As that of the standard library, which it is in memory.
            #[derive(Debug, Default)]
            #[repr(transparent)]
            #[allow(
                unreachable_pub,
                reason = "handed out by public types, and never named outside"
            )]
            pub struct $name(std::sync::atomic::$name);

            #[allow(
                dead_code,
                missing_docs,
                unreachable_pub,
                reason = "as in the standard library"
            )]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    turn();
                    self.0.load(order)
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    turn();
                    self.0.store(value, order);
                }

                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    turn();
                    self.0.swap(value, order)
                }

                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    turn();
                    self.0.compare_exchange(current, new, success, failure)
                }

                pub fn fetch_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    mut next: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut seen = self.load(fetch);
                    while let Some(new) = next(seen) {
                        match self.compare_exchange(seen, new, set, fetch) {
                            Ok(before) => return Ok(before),
                            Err(now) => seen = now,
                        }
                    }
                    Err(seen)
                }

                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    turn();
                    self.0.fetch_add(value, order)
                }

                pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    turn();
                    self.0.fetch_sub(value, order)
                }

                pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    turn();
                    self.0.fetch_max(value, order)
                }
            }
        };
    }

    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
}
