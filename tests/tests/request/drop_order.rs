//! A handler drops its arguments, its variables and its temporaries in the order in which a plain `async fn` does.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use axum::http::StatusCode;
use idempotent_tests::lock;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

struct Noted(&'static str, Log);

impl Noted {
    fn another(&self, name: &'static str) -> Self {
        Self(name, self.1.clone())
    }

    const fn status(&self) -> StatusCode {
        if self.0.is_empty() { StatusCode::NO_CONTENT } else { StatusCode::OK }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        lock(&self.1.0).push(self.0);
    }
}

macro_rules! handlers {
    ($($name:ident($($arguments:tt)*) { $($body:tt)* })*) => {
        mod plain {
            use super::*;
            $(pub(super) async fn $name($($arguments)*) -> StatusCode { $($body)* })*
        }
        mod guarded {
            use super::*;
            $(#[idempotent_runtime::idempotent] pub(super) async fn $name($($arguments)*) -> StatusCode { $($body)* })*
        }
        mod with_an_expression {
            use super::*;
            $(#[idempotent_runtime::idempotent(caller = 7)] pub(super) async fn $name($($arguments)*) -> StatusCode { $($body)* })*
        }
    };
}

handlers! {
    all_named(a: Noted, b: Noted, _c: Noted, _d: Noted) {
        let _local = b.another("local");
        tokio::task::yield_now().await;
        drop(a);
        b.another("temporary").status()
    }
    one_without_a_name(_a: Noted, b: Noted, _: Noted, _d: Noted) {
        let _local = b.another("local");
        tokio::task::yield_now().await;
        b.another("temporary").status()
    }
    the_last_without_a_name(_a: Noted, b: Noted, _c: Noted, _: Noted) {
        let _local = b.another("local");
        tokio::task::yield_now().await;
        b.another("temporary").status()
    }
}

fn dropped(handler: impl Future, log: &Log, polls: usize) -> Vec<&'static str> {
    let mut handler = Box::pin(handler);
    for _ in 0..polls {
        if handler.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            break;
        }
    }
    drop(handler);
    std::mem::take(&mut *lock(&log.0))
}

macro_rules! compare {
    ($name:ident) => {
        #[tokio::test]
        async fn $name() {
            let log = Log::default();
            let noted = |name| Noted(name, log.clone());
            for polls in [0, 1, 9] {
                let plain = dropped(plain::$name(noted("a"), noted("b"), noted("c"), noted("d")), &log, polls);
                let guarded =
                    dropped(guarded::$name(noted("a"), noted("b"), noted("c"), noted("d").into()), &log, polls);
                let with_an_expression = dropped(
                    with_an_expression::$name(noted("a"), noted("b"), noted("c"), noted("d").into()),
                    &log,
                    polls,
                );
                assert_eq!(guarded, plain, "after {polls} polls");
                assert_eq!(with_an_expression, plain, "after {polls} polls, with an expression");
            }
        }
    };
}

compare!(all_named);
compare!(one_without_a_name);
compare!(the_last_without_a_name);
