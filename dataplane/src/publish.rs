//! Configuration by pointer swap.
//!
//! The publisher stores the new snapshot and raises the generation; a subscriber compares the
//! generation once a batch and only then takes the lock. A superseded snapshot dies on the
//! publisher's thread: [`Publisher::publish`] keeps it until no worker holds it any more, so that no
//! worker ever frees one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Mutex;

#[derive(Debug)]
struct Slot<T> {
    generation: AtomicU64,
    current: Mutex<Arc<T>>,
}

/// The writing side.
#[derive(Debug)]
pub struct Publisher<T> {
    slot: Arc<Slot<T>>,
    retired: Mutex<Vec<Arc<T>>>,
}

impl<T> Publisher<T> {
    /// Starts with `first`.
    #[must_use]
    pub fn new(first: T) -> Self {
        let current = Mutex::new(Arc::new(first));
        Self {
            slot: Arc::new(Slot { generation: AtomicU64::new(1), current }),
            retired: Mutex::new(Vec::new()),
        }
    }

    /// Replaces the value. Subscribers see it at their next refresh.
    pub fn publish(&self, next: T) {
        self.update(|_| next);
    }

    /// Replaces the value by one made from it; no other change comes in between.
    pub fn update(&self, change: impl FnOnce(&T) -> T) {
        let old = {
            let mut current = self.slot.current.lock();
            let next = Arc::new(change(&current));
            std::mem::replace(&mut *current, next)
        };
        self.slot.generation.fetch_add(1, Ordering::Release);
        let mut retired = self.retired.lock();
        retired.push(old);
        retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// The value in force.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.slot.current.lock())
    }

    /// A new reading side.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber<T> {
        let generation = self.slot.generation.load(Ordering::Acquire);
        Subscriber { slot: Arc::clone(&self.slot), seen: generation, current: self.current() }
    }

    /// Superseded values that somebody still holds.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.lock().len()
    }
}

/// A reading side. Each worker has one.
#[derive(Debug)]
pub struct Subscriber<T> {
    slot: Arc<Slot<T>>,
    seen: u64,
    current: Arc<T>,
}

impl<T> Subscriber<T> {
    /// Takes over a new value if there is one; says whether. One atomic load when there is none.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let generation = self.slot.generation.load(Ordering::Acquire);
        if generation == self.seen {
            return false;
        }
        self.current = Arc::clone(&self.slot.current.lock());
        self.seen = generation;
        true
    }

    /// The number of the value of the last refresh.
    #[must_use]
    #[inline]
    pub const fn generation(&self) -> u64 {
        self.seen
    }

    /// The value of the last refresh.
    #[must_use]
    #[inline]
    pub fn current(&self) -> &Arc<T> {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_sees_the_newest_value_and_the_old_one_dies_with_the_publisher() {
        let publisher = Publisher::new(1);
        let mut reader = publisher.subscribe();
        assert!(!reader.refresh());
        publisher.publish(2);
        publisher.publish(3);
        assert_eq!(publisher.retired(), 1, "1 is held by the reader, 2 by nobody");
        assert!(reader.refresh());
        assert_eq!(**reader.current(), 3);
        assert!(!reader.refresh());
        publisher.publish(4);
        assert_eq!(publisher.retired(), 1, "3 is held, 1 is gone");
    }

    #[test]
    fn readers_never_go_back() {
        let publisher = Publisher::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let mut reader = publisher.subscribe();
                scope.spawn(move || {
                    let mut last = 0;
                    while last < 1000 {
                        reader.refresh();
                        assert!(**reader.current() >= last);
                        last = **reader.current();
                    }
                });
            }
            for n in 1..=1000 {
                publisher.publish(n);
            }
        });
    }
}
