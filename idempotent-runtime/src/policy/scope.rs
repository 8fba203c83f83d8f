//! The scope of a policy, for values that may live longer than the policy.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A scope that does not borrow from its policy: a layer's policy may be dropped before the claims that were made under
/// it.
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
