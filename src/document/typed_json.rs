//! Values as JSON that a person can read and that loses nothing.
