//! Finds promises that a script leaves behind.
//!
//! Calls are synchronous, so nothing needs to be awaited; what is awaited all the same may never come, and code after it would
//! never run without anybody noticing. The engine keeps no list of promises, so this one does.

use std::cell::RefCell;
use std::rc::Rc;

use rquickjs::promise::PromiseState;
use rquickjs::{Ctx, Persistent, Promise, Runtime, Value as Js};

/// The promises of a script that may be pending.
#[derive(Clone, Default)]
pub(super) struct Promises {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    made: Vec<Persistent<Promise<'static>>>,
    /// How many there may be before the settled ones are let go.
    room: usize,
    /// Rejected, and nobody has looked yet.
    unhandled: Vec<(Persistent<Js<'static>>, Persistent<Js<'static>>)>,
}

const ROOM: usize = 1024;

impl Promises {
    /// Watches all promises of an engine.
    pub(super) fn watch(&self, runtime: &Runtime) {
        let made = self.clone();
        runtime.set_promise_hook(Some(Box::new(move |ctx, kind, promise, _| {
            if matches!(kind, rquickjs::promise::PromiseHookType::Init)
                && let Some(promise) = promise.into_promise()
            {
                made.add(&ctx, promise);
            }
        })));
        let rejected = self.clone();
        runtime.set_host_promise_rejection_tracker(Some(Box::new(move |ctx, promise, reason, handled| {
            rejected.rejected(&ctx, promise, reason, handled);
        })));
    }

    fn add<'js>(&self, ctx: &Ctx<'js>, promise: Promise<'js>) {
        let mut inner = self.inner.borrow_mut();
        if inner.made.len() >= inner.room {
            inner.made.retain(|promise| is_pending(ctx, promise));
            inner.room = ROOM.max(2 * inner.made.len());
        }
        inner.made.push(Persistent::save(ctx, promise));
    }

    fn rejected<'js>(&self, ctx: &Ctx<'js>, promise: Js<'js>, reason: Js<'js>, handled: bool) {
        let mut inner = self.inner.borrow_mut();
        match handled {
            false => {
                let unhandled = (Persistent::save(ctx, promise), Persistent::save(ctx, reason));
                inner.unhandled.push(unhandled);
            }
            true => inner.unhandled.retain(|(known, _)| {
                known
                    .clone()
                    .restore(ctx)
                    .map_or(true, |known: Js<'js>| known != promise)
            }),
        }
    }

    /// How many promises wait for something that cannot come any more.
    pub(super) fn pending(&self, ctx: &Ctx<'_>) -> usize {
        let inner = self.inner.borrow();
        inner
            .made
            .iter()
            .filter(|promise| is_pending(ctx, promise))
            .count()
    }

    /// Why a promise was rejected that nobody looks after.
    pub(super) fn take_unhandled<'js>(&self, ctx: &Ctx<'js>) -> Option<Js<'js>> {
        let (_, reason) = self.inner.borrow_mut().unhandled.pop()?;
        reason.restore(ctx).ok()
    }

    /// Lets everything go: the engine must not end before this.
    pub(super) fn clear(&self) {
        let inner = std::mem::take(&mut *self.inner.borrow_mut());
        drop(inner);
    }
}

fn is_pending(ctx: &Ctx<'_>, promise: &Persistent<Promise<'static>>) -> bool {
    promise
        .clone()
        .restore(ctx)
        .is_ok_and(|promise| matches!(promise.state(), PromiseState::Pending))
}
