//! Work shared out over threads that end with it, so that a fork finds none.

use std::thread::scope;

/// Does the work on every item, each on a thread of its own, the first on this one.
pub(super) fn for_each<T: Send>(items: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
    let mut items = items;
    let Some(own) = items.next() else {
        return;
    };
    let mut others = items.peekable();
    if others.peek().is_none() {
        return work(own);
    }
    scope(|scope| {
        for item in others {
            let work = &work;
            scope.spawn(move || work(item));
        }
        work(own);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_worked_on_once() {
        for num_items in 0..5 {
            let mut items = vec![0_usize; num_items];
            let calls = AtomicUsize::new(0);
            for_each(items.iter_mut().enumerate(), |(place, item)| {
                *item += place + 1;
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(items, (1..=num_items).collect::<Vec<_>>());
            assert_eq!(calls.into_inner(), num_items);
        }
    }
}
