//! A panic anywhere in the product is a broken promise, though the product lives on: what panics in
//! a run's thread is caught here, by a hook.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// `None`: this thread runs no simulation.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Begins to listen in this thread.
pub(crate) fn listen() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let heard = HEARD.try_with(|heard| match heard.borrow_mut().as_mut() {
                Some(heard) => {
                    heard.push(what.to_string());
                    true
                }
                None => false,
            });
            if !heard.unwrap_or(false) {
                before(what);
            }
        }));
    });
    HEARD.with(|heard| *heard.borrow_mut() = Some(Vec::new()));
}

/// What has panicked since the last call.
pub(crate) fn heard() -> Option<String> {
    HEARD.with(|heard| heard.borrow_mut().as_mut().and_then(Vec::pop))
}

/// Ends listening.
pub(crate) fn deafen() {
    HEARD.with(|heard| *heard.borrow_mut() = None);
}
