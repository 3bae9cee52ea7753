//! A user's crontab: crontab(5).

use std::fmt::Write;

use super::{File, Plan, ScheduleError};

/// The lines for a user's crontab. `program` is the path of `firebank`; `credentials` a key file, if one is used.
///
/// What a job prints is thrown away and its errors are not: cron mails those.
pub fn crontab(plan: &Plan, program: &str, credentials: Option<&str>) -> Result<File, ScheduleError> {
    plan.check(&[program, credentials.unwrap_or_default()])?;
    let mut text = String::from(
        "# Firebank. Add these lines with `crontab -e`: they belong to one user, whose rights the jobs have.\n\
         # cron mails what a job says on standard error to MAILTO; a job that is well says nothing.\n",
    );
    if let Some(zone) = plan.time_zone {
        // Debian's cron takes the machine's time zone whatever this says.
        let _ = writeln!(
            text,
            "# CRON_TZ is known to cronie; other crons take the machine's time zone.\nCRON_TZ={zone}"
        );
    }
    let credentials = credentials.map(|file| ("GOOGLE_APPLICATION_CREDENTIALS", file));
    for (name, value) in plan.environment().into_iter().chain(credentials) {
        let _ = writeln!(text, "{name}={}", environment_value(value)?);
    }
    for job in &plan.jobs {
        let mut command = shell_words::quote(program).into_owned();
        for argument in &job.arguments {
            command.push(' ');
            command.push_str(&shell_words::quote(argument));
        }
        // To cron, a percent sign ends the command.
        let command = command.replace('%', "\\%");
        let what = job.purpose.description();
        let _ = writeln!(text, "\n# {what}\n{} {command} > /dev/null", job.when.cron());
    }
    Ok(File {
        name: "firebank.crontab".to_owned(),
        text,
    })
}

/// cron knows quotes around a value, and no way to write one inside of the other.
fn environment_value(value: &str) -> Result<String, ScheduleError> {
    match (value.contains('"'), value.contains('\'')) {
        (false, _) => Ok(format!("\"{value}\"")),
        (true, false) => Ok(format!("'{value}'")),
        (true, true) => Err(ScheduleError::Unquotable {
            value: value.to_owned(),
            place: "a crontab",
            why: "it has quotes of both kinds",
        }),
    }
}
