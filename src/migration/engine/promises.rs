//! Finds promises that a script leaves behind.
//!
//! Calls are synchronous, so nothing needs to be awaited; what is awaited all the same may never come, and code after it would
//! never run without anybody noticing. The engine keeps no list of promises, so this one does.

use std::cell::RefCell;
use std::rc::Rc;

use rquickjs::promise::PromiseState;
use rquickjs::{Ctx, Function, Persistent, Promise, Runtime, Value as Js};

/// The promises of a script that may be pending.
#[derive(Clone, Default)]
pub(super) struct Promises {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    made: Vec<Made>,
    /// Tells the stack.
    here: Option<Persistent<Function<'static>>>,
    /// How many there may be before the settled ones are let go.
    room: usize,
    /// Rejected, and nobody has looked yet.
    unhandled: Vec<(Persistent<Js<'static>>, Persistent<Js<'static>>)>,
}

/// A promise, and the stack of the call that made it.
struct Made {
    promise: Persistent<Promise<'static>>,
    stack: String,
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

    /// From now on the stack is kept of each call that makes one, as this function tells it.
    pub(super) fn tell_where<'js>(&self, ctx: &Ctx<'js>, here: Function<'js>) {
        self.inner.borrow_mut().here = Some(Persistent::save(ctx, here));
    }

    fn add<'js>(&self, ctx: &Ctx<'js>, promise: Promise<'js>) {
        let here = self.inner.borrow().here.clone();
        let here = here.and_then(|here| here.restore(ctx).ok());
        let stack = here.map(|here| {
            here.call::<_, String>(()).unwrap_or_else(|_| {
                // What kept it from telling is nobody's to hear.
                ctx.catch();
                String::new()
            })
        });
        let mut inner = self.inner.borrow_mut();
        if inner.made.len() >= inner.room {
            inner.made.retain(|made| is_pending(ctx, &made.promise));
            inner.room = ROOM.max(2 * inner.made.len());
        }
        inner.made.push(Made {
            promise: Persistent::save(ctx, promise),
            stack: stack.unwrap_or_default(),
        });
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

    /// The stacks of the calls that made promises which wait for something that cannot come any more, the last one last.
    pub(super) fn pending(&self, ctx: &Ctx<'_>) -> Vec<String> {
        let inner = self.inner.borrow();
        let pending = inner.made.iter().filter(|made| is_pending(ctx, &made.promise));
        pending.map(|made| made.stack.clone()).collect()
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
