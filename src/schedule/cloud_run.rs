//! Jobs of Cloud Run and the Cloud Scheduler that starts them, as a script of `gcloud` commands:
//! <https://cloud.google.com/run/docs/execute/jobs-on-schedule>.
//!
//! Each job has an account of its own with the rights that it needs; another one may start the jobs and do nothing else. The
//! script can be run again: what is there is changed to what the script says.

use std::fmt::Write;

use super::{File, Job, Plan, Purpose, ScheduleError};

/// What the script needs beside the plan.
#[derive(Clone, Debug)]
pub struct CloudRun {
    /// The image that has `firebank` as its entry point.
    pub image: String,
    /// Where the jobs run.
    pub region: String,
    /// How many tasks back up together.
    pub tasks: u16,
}

/// The script.
pub fn cloud_run(plan: &Plan, options: &CloudRun) -> Result<File, ScheduleError> {
    plan.check(&[&options.image, &options.region])?;
    plan.check_shared()?;
    let mut text = format!(
        "#!/usr/bin/env bash\n\
         # Firebank: jobs of Cloud Run, their accounts and their times. Can be run again.\n\
         set -euo pipefail\n\n\
         project={}\n\
         region={}\n\
         image={}\n\
         bucket={}\n",
        quoted(&plan.project),
        quoted(&options.region),
        quoted(&options.image),
        quoted(&bucket(&plan.repository)),
    );
    text.push_str(
        "\n\
         account() { # NAME: makes sure that there is such an account\n    \
             gcloud iam service-accounts describe \"$1@$project.iam.gserviceaccount.com\" --project=\"$project\" >/dev/null 2>&1 ||\n        \
                 gcloud iam service-accounts create \"$1\" --project=\"$project\"\n\
         }\n\
         may_in_project() { # NAME ROLE\n    \
             gcloud projects add-iam-policy-binding \"$project\" --condition=None --quiet \\\n        \
                 --member=\"serviceAccount:$1@$project.iam.gserviceaccount.com\" --role=\"$2\" >/dev/null\n\
         }\n\
         may_in_bucket() { # NAME ROLE\n    \
             gcloud storage buckets add-iam-policy-binding \"$bucket\" --quiet \\\n        \
                 --member=\"serviceAccount:$1@$project.iam.gserviceaccount.com\" --role=\"$2\" >/dev/null\n\
         }\n\
         at() { # JOB SCHEDULE ZONE: starts the job at its times\n    \
             local verb=create\n    \
             gcloud scheduler jobs describe \"$1\" --project=\"$project\" --location=\"$region\" >/dev/null 2>&1 && verb=update\n    \
             gcloud scheduler jobs \"$verb\" http \"$1\" --project=\"$project\" --location=\"$region\" \\\n        \
                 --schedule=\"$2\" --time-zone=\"$3\" --http-method=POST \\\n        \
                 --uri=\"https://run.googleapis.com/v2/projects/$project/locations/$region/jobs/$1:run\" \\\n        \
                 --oauth-service-account-email=\"firebank-start@$project.iam.gserviceaccount.com\"\n\
         }\n\n\
         account firebank-start\n",
    );
    for job in &plan.jobs {
        let name = job.purpose.name();
        let _ = write!(
            text,
            "\n# {}\naccount firebank-{name}\n",
            job.purpose.description()
        );
        rights(&mut text, plan, job.purpose);
        deploy(&mut text, plan, options, job);
    }
    Ok(File {
        name: "firebank-cloud-run.sh".to_owned(),
        text,
    })
}

fn rights(text: &mut String, plan: &Plan, purpose: Purpose) {
    let name = purpose.name();
    if purpose.reads_database() {
        let _ = writeln!(text, "may_in_project firebank-{name} roles/datastore.viewer");
    }
    if !plan.repository.starts_with("gs://") {
        return;
    }
    let roles: &[&str] = match purpose {
        Purpose::Backup | Purpose::Verify => &["roles/storage.objectCreator", "roles/storage.objectViewer"],
        Purpose::Check => &["roles/storage.objectViewer"],
        Purpose::Clean => &["roles/storage.objectUser"],
    };
    for role in roles {
        let _ = writeln!(text, "may_in_bucket firebank-{name} {role}");
    }
}

fn deploy(text: &mut String, plan: &Plan, options: &CloudRun, job: &Job) {
    let name = job.purpose.name();
    let is_backup = job.purpose == Purpose::Backup;
    let tasks = if is_backup { options.tasks } else { 1 };
    let environment: Vec<String> = plan
        .environment()
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let (environment, arguments) = (list(&environment), list(&job.arguments));
    let zone = plan.time_zone.unwrap_or(chrono_tz::Etc::UTC);
    let _ = write!(
        text,
        "gcloud run jobs deploy firebank-{name} --project=\"$project\" --region=\"$region\" --image=\"$image\" \\\n    \
             --service-account=\"firebank-{name}@$project.iam.gserviceaccount.com\" \\\n    \
             --tasks={tasks} --parallelism={tasks} --max-retries=4 --task-timeout=24h --cpu=1 --memory=512Mi \\\n    \
             --set-env-vars={environment} \\\n    \
             --args={arguments}\n\
         gcloud run jobs add-iam-policy-binding firebank-{name} --project=\"$project\" --region=\"$region\" --quiet \\\n    \
             --member=\"serviceAccount:firebank-start@$project.iam.gserviceaccount.com\" --role=roles/run.invoker >/dev/null\n\
         at firebank-{name} {schedule} {zone}\n",
        environment = quoted(&environment),
        arguments = quoted(&arguments),
        schedule = quoted(&job.when.cron()),
        zone = quoted(zone.name()),
    );
}

/// A list as gcloud takes it, with a delimiter that no member has: `gcloud topic escaping`.
fn list(members: &[String]) -> String {
    let taken = |delimiter: char| members.iter().any(|member| member.contains(delimiter));
    match [',', '|', ';', '~', '#']
        .into_iter()
        .find(|&delimiter| !taken(delimiter))
    {
        Some(',') | None => members.join(","),
        Some(delimiter) => format!("^{delimiter}^{}", members.join(&delimiter.to_string())),
    }
}

/// `gs://bucket` of `gs://bucket/prefix`.
fn bucket(repository: &str) -> String {
    let end = repository
        .match_indices('/')
        .nth(2)
        .map_or(repository.len(), |(end, _)| end);
    repository[..end].to_owned()
}

fn quoted(value: &str) -> String {
    shell_words::quote(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_a_delimiter_that_no_member_has() {
        let list = |members: &[&str]| {
            list(
                &members
                    .iter()
                    .map(|&member| member.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(list(&["a", "b"]), "a,b");
        assert_eq!(list(&["a,b", "c"]), "^|^a,b|c");
        assert_eq!(list(&["a,b", "c|d"]), "^;^a,b;c|d");
        assert_eq!(bucket("gs://bucket/a/b"), "gs://bucket");
        assert_eq!(bucket("s3://bucket"), "s3://bucket");
    }
}
