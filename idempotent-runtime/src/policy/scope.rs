//! The namespace of a policy's keys, as what a request leaves behind knows it.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A scope of its own lifetime: a layer's policy may be gone before the claims that were made under it.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    Handler(&'static str),
    Layer(Arc<str>),
}

impl Deref for Scope {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Handler(scope) => scope,
            Self::Layer(scope) => scope,
        }
    }
}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Scope {}

impl Hash for Scope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}
