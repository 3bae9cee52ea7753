//! One JSON object with a list of any length.

use std::io::{BufWriter, Stdout, Write};

use serde::Serialize;

use super::output::OutputError;

/// The one JSON object, written as its entries come: there can be more than memory holds. When reading fails, the object
/// stays open and the exit code says so.
pub(crate) struct JsonListing {
    to: Option<BufWriter<Stdout>>,
    first: bool,
}

impl JsonListing {
    /// Begins the object, when it is wanted, with some texts and the list's name.
    pub(crate) fn start(wanted: bool, texts: &[(&str, String)], list: &str) -> Result<Self, OutputError> {
        let mut to = wanted.then(|| BufWriter::new(std::io::stdout()));
        if let Some(to) = &mut to {
            to.write_all(b"{")?;
            for (name, text) in texts {
                write!(to, "\"{name}\": {}, ", serde_json::to_string(text)?)?;
            }
            write!(to, "\"{list}\": [")?;
        }
        Ok(Self { to, first: true })
    }

    /// Writes the list's next entry.
    pub(crate) fn entry(&mut self, entry: &impl Serialize) -> Result<(), OutputError> {
        if let Some(to) = &mut self.to {
            to.write_all(if std::mem::take(&mut self.first) {
                b"\n  "
            } else {
                b",\n  "
            })?;
            serde_json::to_writer(to, entry)?;
        }
        Ok(())
    }

    /// Ends the list and the object, with some more values.
    pub(crate) fn end(self, values: &[(&str, serde_json::Value)]) -> Result<(), OutputError> {
        if let Some(mut to) = self.to {
            to.write_all(b"\n]")?;
            for (name, value) in values {
                write!(to, ", \"{name}\": {}", serde_json::to_string(value)?)?;
            }
            to.write_all(b"}\n")?;
            to.flush()?;
        }
        Ok(())
    }
}
