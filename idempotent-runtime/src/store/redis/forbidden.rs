//! The errors of a server that forbids a command or a name.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Returns whether the user may not use a command or a name, or the server has no such command.
pub(super) fn may_not(error: &RedisError) -> bool {
    // Before version 7, the error of a command in a script is part of a longer text.
    let text = error.to_string();
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || ["NOPERM", "unknown command", "Unknown Redis command"].iter().any(|what| text.contains(what))
}
