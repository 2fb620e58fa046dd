//! realpeer
