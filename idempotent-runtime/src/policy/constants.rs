//! Reads constants of the program as values of an attribute. The compiler evaluates these functions: a panic becomes a
//! compile error at the value.

use std::time::Duration;

use crate::policy::Settings;

macro_rules! checked {
    ($function:ident, $ty:ty, $check:path, $argument:literal, $write:literal) => {
        #[doc(hidden)]
        #[track_caller]
        pub const fn $function(value: $ty) -> $ty {
            match $check(value) {
                Ok(()) => value,
                Err(wrong) => fail(&[concat!("`", $argument, "` "), wrong, concat!("; write ", $write)]),
            }
        }
    };
}

checked!(constant_ttl, Duration, idempotent_policy::check_ttl, "ttl", "`Duration::from_secs(24 * 60 * 60)`");
checked!(constant_lease, Duration, idempotent_policy::check_lease, "lease", "`Duration::from_secs(30)`");
checked!(constant_wait, Duration, idempotent_policy::check_wait, "wait", "`Duration::from_secs(5)`");

macro_rules! checked_name {
    ($function:ident, $argument:literal, $write:literal) => {
        checked!($function, &'static str, idempotent_policy::check_name, $argument, $write);
    };
}

checked_name!(constant_scope, "scope", "`\"charges\"`");
checked_name!(constant_store, "store", "`\"payments\"`");

#[doc(hidden)]
impl Settings {
    /// Sets the default lease, which is never longer than the ttl.
    #[must_use]
    pub const fn with_default_lease(mut self) -> Self {
        if let Ok(lease) = idempotent_policy::lease(None, self.ttl) {
            self.lease = lease;
        }
        self
    }

    #[must_use]
    #[track_caller]
    pub const fn with_lease_within_ttl(self) -> Self {
        match idempotent_policy::lease(Some(self.lease), self.ttl) {
            Ok(_) => self,
            Err(wrong) => fail(&["`lease` ", wrong, "; shorten it, or lengthen `ttl`"]),
        }
    }
}

/// Fails the compilation. The text of the error must be joined by hand, because a constant cannot format.
#[track_caller]
const fn fail(parts: &[&str]) -> ! {
    let (mut text, mut length, mut part) = ([0; 512], 0, 0);
    while part < parts.len() {
        let (bytes, mut index) = (parts[part].as_bytes(), 0);
        while index < bytes.len() && length < text.len() {
            text[length] = bytes[index];
            (index, length) = (index + 1, length + 1);
        }
        part += 1;
    }
    match str::from_utf8(text.split_at(length).0) {
        Ok(text) => panic!("{}", text),
        Err(_) => panic!("the value is invalid"),
    }
}
