//! What the benchmarks of whole operations have in common: processes and what they cost, the tool's
//! repositories, the database as raw bytes, and the report.
#![allow(dead_code, reason = "each benchmark compiles it for itself and uses a part")]

pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod report;
pub(crate) mod repository;
