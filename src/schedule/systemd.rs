//! Services and timers of systemd: systemd.service(5), systemd.timer(5).

use std::fmt::Write;

use super::{File, Job, Plan, ScheduleError};

/// What the units need beside the plan.
#[derive(Clone, Debug)]
pub struct Systemd {
    /// The path of `firebank`.
    pub program: String,
    /// The user that the jobs run as.
    pub user: String,
    /// A unit to start when a job fails.
    pub on_failure: Option<String>,
}

/// A service and a timer for each job.
pub fn systemd(plan: &Plan, options: &Systemd) -> Result<Vec<File>, ScheduleError> {
    let on_failure = options.on_failure.as_deref().unwrap_or_default();
    plan.check(&[&options.program, &options.user, on_failure])?;
    let files = plan.jobs.iter().flat_map(|job| {
        let name = job.purpose.name();
        [
            File {
                name: format!("firebank-{name}.service"),
                text: service(plan, options, job),
            },
            File {
                name: format!("firebank-{name}.timer"),
                text: timer(plan, job),
            },
        ]
    });
    Ok(files.collect())
}

fn service(plan: &Plan, options: &Systemd, job: &Job) -> String {
    let name = job.purpose.name();
    let mut text = format!(
        "[Unit]\nDescription={}\nWants=network-online.target\nAfter=network-online.target\n",
        job.purpose.description()
    );
    if let Some(unit) = &options.on_failure {
        let _ = writeln!(text, "OnFailure={unit}");
    }
    let _ = write!(text, "\n[Service]\nType=oneshot\nUser={}\n", options.user);
    for (name, value) in plan.environment() {
        let _ = writeln!(text, "Environment={}", quoted(&format!("{name}={value}"), false));
    }
    let arguments: String = job
        .arguments
        .iter()
        .map(|argument| format!(" {}", quoted(argument, true)))
        .collect();
    let _ = write!(
        text,
        "# Credentials: those of all jobs, then those of this one alone, so that only the clean has the right to delete.\n\
         EnvironmentFile=-/etc/firebank/firebank.env\n\
         EnvironmentFile=-/etc/firebank/{name}.env\n\
         ExecStart={}{arguments}\n\
         # A backup that is stopped ends at a checkpoint.\n\
         TimeoutStopSec=60\n\
         NoNewPrivileges=yes\n\
         PrivateTmp=yes\n\
         PrivateDevices=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=read-only\n\
         ProtectKernelTunables=yes\n\
         ProtectControlGroups=yes\n\
         RestrictSUIDSGID=yes\n",
        quoted(&options.program, true)
    );
    if plan.repository_is_folder {
        let _ = writeln!(text, "ReadWritePaths={}", quoted(&plan.repository, false));
    }
    text
}

fn timer(plan: &Plan, job: &Job) -> String {
    let mut calendar = job.when.calendar();
    if let Some(zone) = plan.time_zone {
        let _ = write!(calendar, " {zone}");
    }
    format!(
        "[Unit]\nDescription={}\n\n\
         [Timer]\nOnCalendar={calendar}\n\
         # What was due while the machine was off runs once it is on.\n\
         Persistent=true\n\n\
         [Install]\nWantedBy=timers.target\n",
        job.purpose.description()
    )
}

/// A value in a unit. Percent signs begin specifiers everywhere, dollar signs variables in commands.
fn quoted(value: &str, is_command: bool) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '%' => quoted.push_str("%%"),
            '$' if is_command => quoted.push_str("$$"),
            _ => quoted.push(character),
        }
    }
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./=:,@+%".contains(character);
    match !quoted.is_empty() && quoted.chars().all(is_plain) {
        true => quoted,
        false => format!("\"{quoted}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        assert_eq!(quoted("gs://bucket/prefix", false), "gs://bucket/prefix");
        assert_eq!(quoted("--read-data=10%", true), "--read-data=10%%");
        assert_eq!(quoted("a b", true), "\"a b\"");
        assert_eq!(quoted("$HOME \"x\"", true), "\"$$HOME \\\"x\\\"\"");
        assert_eq!(quoted("$HOME", false), "\"$HOME\"");
        assert_eq!(quoted("", true), "\"\"");
    }
}
