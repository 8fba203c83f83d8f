//! For tests of handlers and of stores.
