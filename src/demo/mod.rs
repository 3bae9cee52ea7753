//! The demonstration: the whole story on the embedded sandbox.

pub mod retail;
