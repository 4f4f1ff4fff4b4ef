//! x
pub mod machine;
pub mod wire;
