//! CronJobs of Kubernetes, `batch/v1`: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/cron-job-v1/>.
//!
//! The backup is an Indexed Job: its tasks work on one session, which has the Job's name, and share nothing but the bucket.
//! Kubernetes tells each its index (`JOB_COMPLETION_INDEX`) and neither how many there are nor the Job's name: the count stands
//! in the arguments, and the name and the Job's own id come from the labels that it gives its pods.
//! A task that dies is started again and goes on. `backoffLimitPerIndex` wants Kubernetes 1.29.
//!
//! Values stand in double quotes as JSON writes them, which YAML reads the same.

use std::fmt::Write;

use super::{File, Job, Plan, Purpose, ScheduleError};

/// What the manifests need beside the plan.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// The image that has `firebank` as its entry point.
    pub image: String,
    /// Where everything goes.
    pub namespace: String,
    /// How many tasks back up together.
    pub tasks: u16,
}

/// The labels that a Job's pods bear, with its name and its own id:
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#batchkubernetesio-job-name>.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const JOB_UID: &str = "batch.kubernetes.io/controller-uid";

/// One file: the namespace's accounts, then a CronJob for each job.
pub fn kubernetes(plan: &Plan, options: &Kubernetes) -> Result<File, ScheduleError> {
    plan.check(&[&options.image, &options.namespace])?;
    plan.check_shared()?;
    let mut text = String::from(
        "# Firebank. Apply with `kubectl apply -f`. Keys of a bucket that is not Google's go into the secret `firebank`,\n\
         # one variable each; on GKE, the accounts below stand for the Google accounts that they name (Workload Identity).\n",
    );
    for job in &plan.jobs {
        account(&mut text, plan, options, job.purpose);
    }
    for job in &plan.jobs {
        cron_job(&mut text, plan, options, job);
    }
    Ok(File {
        name: "firebank.yaml".to_owned(),
        text,
    })
}

fn account(text: &mut String, plan: &Plan, options: &Kubernetes, purpose: Purpose) {
    let name = purpose.name();
    let google = format!("firebank-{name}@{}.iam.gserviceaccount.com", plan.project);
    let _ = write!(
        text,
        "---\n\
         apiVersion: v1\n\
         kind: ServiceAccount\n\
         metadata:\n  \
           name: firebank-{name}\n  \
           namespace: {namespace}\n  \
           annotations:\n    \
             iam.gke.io/gcp-service-account: {google}\n\
         automountServiceAccountToken: false\n",
        namespace = string(&options.namespace),
        google = string(&google),
    );
}

fn cron_job(text: &mut String, plan: &Plan, options: &Kubernetes, job: &Job) {
    let name = job.purpose.name();
    let zone = plan.time_zone.unwrap_or(chrono_tz::Etc::UTC);
    let _ = write!(
        text,
        "---\n\
         # {what}\n\
         apiVersion: batch/v1\n\
         kind: CronJob\n\
         metadata:\n  \
           name: firebank-{name}\n  \
           namespace: {namespace}\n  \
           labels:\n    \
             app.kubernetes.io/name: firebank\n    \
             app.kubernetes.io/component: {name}\n\
         spec:\n  \
           schedule: {schedule}\n  \
           timeZone: {zone}\n  \
           concurrencyPolicy: Forbid\n  \
           startingDeadlineSeconds: 3600\n  \
           successfulJobsHistoryLimit: 3\n  \
           failedJobsHistoryLimit: 7\n  \
           jobTemplate:\n    \
             spec:\n",
        what = job.purpose.description(),
        namespace = string(&options.namespace),
        schedule = string(&job.when.cron()),
        zone = string(zone.name()),
    );
    let is_backup = job.purpose == Purpose::Backup;
    let _ = match is_backup {
        true => write!(
            text,
            "      \
                   completionMode: Indexed\n      \
                   completions: {tasks}\n      \
                   parallelism: {tasks}\n      \
                   # Each task may fail so often; what it has done stays done.\n      \
                   backoffLimitPerIndex: 4\n",
            tasks = options.tasks
        ),
        false => writeln!(text, "      backoffLimit: 2"),
    };
    let mut arguments = job.arguments.clone();
    if is_backup {
        let count = options.tasks.to_string();
        let session = ["--session", "$(JOB_NAME)", "--task-count", count.as_str()];
        arguments.extend(session.map(str::to_owned));
    }
    let arguments: String = arguments
        .iter()
        .map(|argument| format!("                - {}\n", string(argument)))
        .collect();
    let _ = write!(
        text,
        "      \
               ttlSecondsAfterFinished: 604800\n      \
               template:\n        \
                 metadata:\n          \
                   labels:\n            \
                     app.kubernetes.io/name: firebank\n            \
                     app.kubernetes.io/component: {name}\n        \
                 spec:\n          \
                   serviceAccountName: firebank-{name}\n          \
                   automountServiceAccountToken: false\n          \
                   restartPolicy: Never\n          \
                   securityContext:\n            \
                     runAsNonRoot: true\n            \
                     runAsUser: 65532\n            \
                     seccompProfile:\n              \
                       type: RuntimeDefault\n          \
                   containers:\n            \
                     - name: firebank\n              \
                       image: {image}\n              \
                       args:\n{arguments}              \
                       env:\n",
        image = string(&options.image),
    );
    for (name, value) in plan.environment() {
        let _ = write!(
            text,
            "                - name: {name}\n                  value: {}\n",
            string(value)
        );
    }
    let labels: &[_] = match is_backup {
        true => &[("JOB_NAME", JOB_NAME), ("FIREBANK_EXECUTION", JOB_UID)],
        false => &[],
    };
    for (name, label) in labels {
        let _ = write!(
            text,
            "                \
                             - name: {name}\n                  \
                               valueFrom:\n                    \
                                 fieldRef:\n                      \
                                   fieldPath: {}\n",
            string(&format!("metadata.labels['{label}']"))
        );
    }
    text.push_str(
        "              \
                       envFrom:\n                \
                         - secretRef:\n                    \
                             name: firebank\n                    \
                             optional: true\n              \
                       resources:\n                \
                         requests:\n                  \
                           cpu: \"1\"\n                  \
                           memory: 512Mi\n                \
                         limits:\n                  \
                           memory: 512Mi\n              \
                       securityContext:\n                \
                         allowPrivilegeEscalation: false\n                \
                         readOnlyRootFilesystem: true\n                \
                         capabilities:\n                  \
                           drop: [ALL]\n              \
                       volumeMounts:\n                \
                         - name: tmp\n                  \
                           mountPath: /tmp\n          \
                   volumes:\n            \
                     - name: tmp\n              \
                       emptyDir: {}\n",
    );
}

/// A value in double quotes. `$(…)` would be taken for a variable, and `$$(…)` is how it is written.
fn string(value: &str) -> String {
    let value = match value {
        "$(JOB_NAME)" => value.to_owned(),
        _ => value.replace("$(", "$$("),
    };
    serde_json::Value::from(value).to_string()
}
