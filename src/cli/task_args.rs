//! Which of several tasks this process is, as its options or the engine that started it say.

use std::str::FromStr;

use clap::Args;

use super::UsageError;
use crate::task::{SharedWork, Task};

/// What Cloud Run tells each task of a job: <https://cloud.google.com/run/docs/container-contract#jobs-env-vars>.
const CLOUD_RUN_INDEX: &str = "CLOUD_RUN_TASK_INDEX";
const CLOUD_RUN_COUNT: &str = "CLOUD_RUN_TASK_COUNT";
/// What Kubernetes tells each pod of an Indexed Job; how many there are it does not tell:
/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode>.
const KUBERNETES_INDEX: &str = "JOB_COMPLETION_INDEX";

/// As many as an Indexed Job of Kubernetes has: each task looks at the state of all.
const MOST_TASKS: u32 = 100_000;

#[derive(Args, Debug, Default)]
pub(crate) struct TaskArgs {
    /// Which of the tasks that share the work this process is, counted from 0 [default: in a Cloud Run Job and an Indexed Job of
    /// Kubernetes, the task's own]
    #[arg(long, value_name = "I")]
    task_index: Option<u32>,
    /// How many tasks share the work [default: in a Cloud Run Job, as many as it has]
    #[arg(long, value_name = "N")]
    task_count: Option<u32>,
}

impl TaskArgs {
    /// Whether the command line says anything of it.
    pub(crate) fn is_given(&self) -> bool {
        self.task_index.is_some() || self.task_count.is_some()
    }

    /// The task; `None` when nothing says that there are several.
    pub(crate) fn task(&self) -> anyhow::Result<Option<Task>> {
        let index = match self.task_index {
            Some(index) => Some(index),
            None => match from_environment(CLOUD_RUN_INDEX)? {
                None => from_environment(KUBERNETES_INDEX)?,
                index => index,
            },
        };
        let count = match self.task_count {
            Some(count) => Some(count),
            None => from_environment(CLOUD_RUN_COUNT)?,
        };
        match (index, count) {
            (Some(_), Some(count)) if count > MOST_TASKS => Err(UsageError::new(format!(
                "--task-count: {count} tasks are more than share one work ({MOST_TASKS} at most)"
            ))),
            (Some(index), Some(count)) => Task::new(index, count)
                .map(Some)
                .map_err(|error| UsageError::new(format!("--task-index and --task-count: {error}"))),
            (None, _) if self.task_count.is_some() => Err(UsageError::new(format!(
                "--task-count needs --task-index, or {KUBERNETES_INDEX} or {CLOUD_RUN_INDEX} in the environment"
            ))),
            (_, None) if self.task_index.is_some() => Err(UsageError::new(
                "--task-index needs --task-count: how many tasks share the work",
            )),
            // An engine that numbers its copies does not say by that that they shall share this.
            _ => Ok(None),
        }
    }
}

/// How tasks share what is no backup.
#[derive(Args, Debug, Default)]
pub(crate) struct SharedArgs {
    /// What the tasks call the work that they share: the same for all of them, and a new one each time. Who is done with its share goes
    /// on with what others have not begun, or have left when they died [default: in a Cloud Run Job, its execution]
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
    /// What tells these tasks from those of another time: one that is started again when all is done says so and ends well, one of
    /// another execution is refused [default: in a Cloud Run Job, its execution]
    #[arg(long, value_name = "ID", env = EXECUTION_VARIABLE, hide_env_values = true)]
    execution: Option<String>,
}

impl SharedArgs {
    /// Whether the command line says anything of it.
    pub(crate) fn is_given(&self) -> bool {
        self.session.is_some() || self.task.is_given()
    }

    /// Whether the command line says what the tasks share.
    pub(crate) fn is_named(&self) -> bool {
        self.session.is_some()
    }

    /// The task, and what it shares with others, where that has a name. A job of one task shares with nobody, unless that is said.
    pub(crate) fn shared(&self) -> anyhow::Result<(Option<Task>, Option<SharedWork>)> {
        let task = self.task.task()?;
        match &self.session {
            Some(name) if name.is_empty() => {
                return Err(UsageError::new("--session: give the work a name"));
            }
            Some(_) if task.is_none() => {
                return Err(UsageError::new(
                    "--session is what tasks share: it goes with --task-index and --task-count",
                ));
            }
            _ => {}
        }
        let task = task.filter(|task| task.count() > 1 || self.session.is_some());
        let name = self.session.clone().or_else(execution);
        let shared = task.zip(name).map(|(task, name)| SharedWork {
            execution: given_or_own(self.execution.clone()),
            ..SharedWork::new(task, name)
        });
        Ok((task, shared))
    }
}

/// What tells the executions of a job apart.
pub(crate) const EXECUTION_VARIABLE: &str = "FIREBANK_EXECUTION";

/// The execution that was named, or that of the Cloud Run Job that this process is a task of.
pub(crate) fn given_or_own(execution: Option<String>) -> Option<String> {
    execution
        .filter(|execution| !execution.is_empty())
        .or_else(self::execution)
}

/// The execution of a Cloud Run Job that this process is a task of. Its tasks, and those that are started again in their place,
/// know each other by it: <https://cloud.google.com/run/docs/container-contract#jobs-env-vars>.
pub(crate) fn execution() -> Option<String> {
    std::env::var("CLOUD_RUN_EXECUTION")
        .ok()
        .filter(|name| !name.is_empty())
}

fn from_environment<T: FromStr>(name: &str) -> anyhow::Result<Option<T>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(UsageError::new(format!("{name} is `{text}`, which is no number"))),
        },
        _ => Ok(None),
    }
}
