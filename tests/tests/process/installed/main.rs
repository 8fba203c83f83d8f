//! The installed registry: which requests find it, and what it changes in the document.

mod openapi;
mod registry;
