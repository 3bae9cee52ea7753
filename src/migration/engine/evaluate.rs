//! The engine's thread: sets QuickJS up, evaluates the module, calls one of its functions, and says what went wrong.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rquickjs::module::Evaluated;
use rquickjs::{
    CatchResultExt, CaughtError, Coerced, Context, Ctx, Function as JsFunction, Object, Runtime, Value as Js,
};
use tokio::sync::mpsc;

use super::calls::{Surroundings, host_object};
use super::failure::Failure;
use super::host::{Access, Host};
use super::promises::Promises;
use super::serve::Request;
use super::watch::{Ended, Watch};
use super::{Exports, Module, plain};
use crate::migration::{Function, LogSink, ScriptError, ScriptErrorKind};
use crate::stop::Stop;

/// The name under which stacks have the prelude.
const PRELUDE: &str = "firebank:prelude";

/// What the thread is to do.
pub(super) struct Job {
    pub(super) module: Module,
    pub(super) task: Task,
    pub(super) access: Access,
    pub(super) dry_run: bool,
    pub(super) requests: Option<mpsc::Sender<Request>>,
    pub(super) log: LogSink,
    pub(super) stop: Stop,
    pub(super) abandoned: Arc<AtomicBool>,
    pub(super) root: String,
    pub(super) project: String,
}

/// What for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Looks at the exports.
    Look,
    /// Calls one of them.
    Call(Function),
}

/// Why it did not work.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: ScriptError,
}

/// Does the job. Everything of the engine is gone when this returns.
pub(super) fn evaluate(job: Job) -> Result<Exports, Failed> {
    let watch = Rc::new(Watch::new(
        &job.module.limits,
        job.stop.clone(),
        job.abandoned.clone(),
    ));
    let engine_failed = |error: rquickjs::Error| Failed {
        error: plain(
            &job.module.file,
            format!("the script engine cannot be started: {error}"),
            ScriptErrorKind::MemoryLimit,
        ),
    };
    let runtime = Runtime::new().map_err(engine_failed)?;
    runtime.set_memory_limit(job.module.limits.memory_bytes);
    runtime.set_max_stack_size(job.module.limits.stack_bytes);
    let interrupt = watch.clone();
    runtime.set_interrupt_handler(Some(Box::new(move || interrupt.must_end())));
    let context = Context::full(&runtime).map_err(engine_failed)?;
    let promises = Promises::default();
    promises.watch(&runtime);
    let host = Rc::new(Host::new(
        job.access,
        job.requests,
        watch,
        job.log,
        job.root,
        job.module.limits.memory_bytes,
    ));
    let result = context.with(|ctx| {
        let evaluation = Evaluation {
            ctx: ctx.clone(),
            module: &job.module,
            host: host.clone(),
            promises: promises.clone(),
            surroundings: Surroundings {
                dry_run: job.dry_run,
                settings: &job.module.settings,
                project: &job.project,
            },
        };
        let result = evaluation.perform(job.task);
        promises.clear();
        result
    });
    result.map_err(|error| Failed { error })
}

struct Evaluation<'a, 'js> {
    ctx: Ctx<'js>,
    module: &'a Module,
    host: Rc<Host>,
    promises: Promises,
    surroundings: Surroundings<'a>,
}

/// What the prelude gives.
struct Prelude<'js> {
    database: Js<'js>,
    settle: JsFunction<'js>,
}

impl<'js> Evaluation<'_, 'js> {
    fn perform(&self, task: Task) -> Result<Exports, ScriptError> {
        let prelude = self.caught(self.prelude())?;
        let module = self.evaluated()?;
        let exports = self.exports(&module)?;
        let Task::Call(function) = task else {
            return Ok(exports);
        };
        let returned = self.caught(self.call(&module, function, &prelude))?;
        let returned = self.settled(returned)?;
        if function == Function::Validate && returned.as_bool() == Some(false) {
            return Err(plain(
                &self.module.file,
                "validate returned false".to_owned(),
                ScriptErrorKind::Invalid,
            ));
        }
        self.caught(prelude.settle.call::<_, ()>(()))?;
        self.check_promises()?;
        Ok(exports)
    }

    fn prelude(&self) -> rquickjs::Result<Prelude<'js>> {
        let mut options = rquickjs::context::EvalOptions::default();
        options.filename = Some(PRELUDE.to_owned());
        let prelude: JsFunction<'js> = self.ctx.eval_with_options(include_str!("prelude.js"), options)?;
        let mut options = rquickjs::context::EvalOptions::default();
        options.filename = Some(PRELUDE.to_owned());
        let here = self.ctx.eval_with_options("() => new Error().stack", options)?;
        self.promises.tell_where(&self.ctx, here);
        let host = host_object(&self.ctx, &self.host, &self.surroundings)?;
        let made: Object<'js> = prelude.call((host,))?;
        Ok(Prelude {
            database: made.get("database")?,
            settle: made.get("settle")?,
        })
    }

    /// The module, with everything at its top level done.
    fn evaluated(&self) -> Result<rquickjs::Module<'js, Evaluated>, ScriptError> {
        let name = self.module.file.display().to_string().replace('\0', "?");
        let declared = rquickjs::Module::declare(self.ctx.clone(), name, self.module.source.as_str());
        let declared = self.caught(declared).map_err(|mut error| {
            if matches!(error.kind, ScriptErrorKind::Thrown) {
                error.kind = ScriptErrorKind::Syntax;
            }
            error
        })?;
        let (module, promise) = self.caught(declared.eval())?;
        self.settled(promise.into_value())?;
        self.check_promises()?;
        Ok(module)
    }

    fn exports(&self, module: &rquickjs::Module<'js, Evaluated>) -> Result<Exports, ScriptError> {
        let namespace = self.caught(module.namespace())?;
        let wrong = |message: String| plain(&self.module.file, message, ScriptErrorKind::Exports);
        let function = |name: &str| {
            let export: Js<'js> = self.caught(namespace.get(name))?;
            match export.is_undefined() {
                true => Ok(false),
                false if export.is_function() => Ok(true),
                false => Err(wrong(format!("its export `{name}` is not a function"))),
            }
        };
        if !function("migrate")? {
            return Err(wrong(
                "it does not export a function `migrate`: a migration begins with `export function migrate(db) {`"
                    .to_owned(),
            ));
        }
        let description: Js<'js> = self.caught(namespace.get("description"))?;
        let description = match description.as_string() {
            Some(text) => Some(self.caught(text.to_string())?),
            None if description.is_undefined() => None,
            None => return Err(wrong("its export `description` is not a text".to_owned())),
        };
        Ok(Exports {
            description,
            rollback: function("rollback")?,
            validate: function("validate")?,
        })
    }

    fn call(
        &self,
        module: &rquickjs::Module<'js, Evaluated>,
        function: Function,
        prelude: &Prelude<'js>,
    ) -> rquickjs::Result<Js<'js>> {
        let function: JsFunction<'js> = module.namespace()?.get(function.name())?;
        self.host.watch.resumed();
        function.call((prelude.database.clone(),))
    }

    /// What a promise came to, and other values as they are. Does all the jobs that wait.
    fn settled(&self, value: Js<'js>) -> Result<Js<'js>, ScriptError> {
        let mut ended = self.check_ended();
        while ended.is_ok() && self.ctx.execute_pending_job() {
            ended = self.check_ended();
        }
        if let Err(ended) = ended {
            // What a module's top level was ended with says where it was.
            let thrown = value.as_promise().and_then(|promise| promise.result::<Js<'js>>());
            return match thrown {
                Some(Err(thrown)) => self.caught(Err(thrown)),
                _ => Err(ended),
            };
        }
        let Some(promise) = value.as_promise() else {
            return Ok(value);
        };
        match promise.result::<Js<'js>>() {
            Some(result) => {
                let result = self.caught(result);
                // It is looked after here.
                if result.is_err() {
                    while self.promises.take_unhandled(&self.ctx).is_some() {}
                }
                result
            }
            None => Err(self.hanging()),
        }
    }

    fn check_promises(&self) -> Result<(), ScriptError> {
        while self.ctx.execute_pending_job() {
            self.check_ended()?;
        }
        self.check_ended()?;
        if let Some(reason) = self.promises.take_unhandled(&self.ctx) {
            let mut error = self.of_thrown(reason);
            error.message = format!(
                "a promise was rejected and nobody looked after it: {}",
                error.message
            );
            error.kind = ScriptErrorKind::Promise;
            return Err(error);
        }
        match self.promises.pending(&self.ctx).is_empty() {
            true => Ok(()),
            false => Err(self.hanging()),
        }
    }

    fn hanging(&self) -> ScriptError {
        let pending = self.promises.pending(&self.ctx);
        let what = match pending.len() {
            0 | 1 => "a promise is".to_owned(),
            more => format!("{more} promises are"),
        };
        let mut error = plain(
            &self.module.file,
            format!(
                "{what} left that can never be settled, so what comes after it would never run: calls are synchronous \
                 here, nothing needs to be awaited"
            ),
            ScriptErrorKind::Promise,
        );
        // The one that was made last is what the others wait for, as a rule.
        for stack in pending.iter().rev() {
            locate(&mut error, stack);
            if error.line.is_some() {
                break;
            }
        }
        error
    }

    fn check_ended(&self) -> Result<(), ScriptError> {
        match self.host.watch.ended() {
            Some(ended) => Err(of_ended(&self.module.file, ended)),
            None => Ok(()),
        }
    }

    fn caught<T>(&self, result: rquickjs::Result<T>) -> Result<T, ScriptError> {
        result.catch(&self.ctx).map_err(|caught| match caught {
            CaughtError::Exception(exception) => self.of_thrown(exception.into_object().into_value()),
            CaughtError::Value(value) => self.of_thrown(value),
            CaughtError::Error(rquickjs::Error::Allocation) => self.out_of_memory(),
            CaughtError::Error(error) => plain(&self.module.file, error.to_string(), ScriptErrorKind::Thrown),
        })
    }

    fn out_of_memory(&self) -> ScriptError {
        let limit = self.module.limits.memory_bytes >> 20;
        plain(
            &self.module.file,
            format!("the script wants more than the {limit} MiB of memory that it may have"),
            ScriptErrorKind::MemoryLimit,
        )
    }

    /// What was thrown, as an error that says where.
    fn of_thrown(&self, thrown: Js<'js>) -> ScriptError {
        // The engine throws null where there was no memory left for an error.
        if thrown.is_null() {
            return self.out_of_memory();
        }
        let (name, message, stack) = describe(&thrown);
        let mut error = plain(&self.module.file, message.clone(), ScriptErrorKind::Thrown);
        locate(&mut error, &stack);
        if let Some(ended) = self.host.watch.ended() {
            let ended = of_ended(&self.module.file, ended);
            error.message = ended.message;
            error.kind = ended.kind;
            return error;
        }
        if let Some(failure) = self.host.take_failure(&message) {
            error.kind = kind_of(failure);
            return error;
        }
        match name.as_str() {
            "AssertionError" => error.kind = ScriptErrorKind::Invalid,
            "InternalError" if message.contains("out of memory") => {
                error.message = self.out_of_memory().message;
                error.kind = ScriptErrorKind::MemoryLimit;
            }
            "SyntaxError" => {
                error.message = format!("{name}: {message}");
                error.kind = ScriptErrorKind::Syntax;
            }
            "" | "Error" => {}
            "ReferenceError" if message.contains("could not load module") => {
                error.message = format!("{message}: a migration is one file and cannot import others");
                error.kind = ScriptErrorKind::Syntax;
            }
            name => error.message = format!("{name}: {message}"),
        }
        error
    }
}

/// The name, the message and the stack of what was thrown.
fn describe(thrown: &Js<'_>) -> (String, String, String) {
    let Some(object) = thrown.as_object().filter(|object| object.is_error()) else {
        let text = match thrown.get::<Coerced<String>>() {
            Ok(text) => text.0,
            Err(_) => thrown.type_name().to_owned(),
        };
        return (String::new(), format!("it threw {text}"), String::new());
    };
    let get = |key: &str| {
        object
            .get::<_, Coerced<String>>(key)
            .map_or_else(|_| String::new(), |text| text.0)
    };
    (get("name"), get("message"), get("stack"))
}

/// Takes the stack over, without the prelude's part, and the place of its innermost call.
fn locate(error: &mut ScriptError, stack: &str) {
    let calls: Vec<&str> = stack
        .lines()
        .map(str::trim)
        .filter(|call| !call.is_empty() && !call.contains(PRELUDE) && !call.contains("(native)"))
        .collect();
    if let Some((line, column)) = calls.first().and_then(|call| place(call)) {
        error.line = Some(line);
        error.column = Some(column);
    }
    error.stack = calls.join("\n");
}

/// The line and the column at a call's end: `at migrate (file.js:3:7)`.
fn place(call: &str) -> Option<(u32, u32)> {
    let mut parts = call.trim_end_matches(')').rsplitn(3, ':');
    let column = parts.next()?.parse().ok()?;
    let line = parts.next()?.parse().ok()?;
    Some((line, column))
}

fn kind_of(failure: Failure) -> ScriptErrorKind {
    match failure {
        Failure::Database(error) => ScriptErrorKind::Database(Box::new(error)),
        Failure::Journal(error) => ScriptErrorKind::Journal(error),
        Failure::Deadline(_) | Failure::TotalTime(_) => ScriptErrorKind::TimeLimit,
        Failure::Stopped => ScriptErrorKind::Stopped,
        Failure::Refused { .. } | Failure::Contended { .. } | Failure::TooContended => {
            ScriptErrorKind::Refused
        }
        Failure::Change { .. } | Failure::Gone => ScriptErrorKind::Thrown,
    }
}

/// A failure on the database's side, where the script asked for it.
pub(super) fn of_failure(file: &Path, failure: Failure) -> ScriptError {
    let mut error = plain(file, failure.to_string(), ScriptErrorKind::Thrown);
    if let Some(site) = failure.site() {
        locate(&mut error, site);
    }
    error.kind = kind_of(failure);
    error
}

fn of_ended(file: &Path, ended: Ended) -> ScriptError {
    let (message, kind) = match ended {
        Ended::Busy(limit) => (
            format!(
                "the script computed for {} s without asking anything of the database, which is the most that it may: \
                 an endless loop?",
                limit.as_secs_f64()
            ),
            ScriptErrorKind::TimeLimit,
        ),
        Ended::Total(limit) => (
            format!(
                "the script took more than the {} s that it may",
                limit.as_secs_f64()
            ),
            ScriptErrorKind::TimeLimit,
        ),
        Ended::Asked | Ended::Abandoned => (
            "the script was asked to stop".to_owned(),
            ScriptErrorKind::Stopped,
        ),
    };
    plain(file, message, kind)
}
