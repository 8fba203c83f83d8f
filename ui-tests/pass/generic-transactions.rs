//! An argument that looks like a `Tx` and depends on generics of the function or of its `impl` block.

#![deny(warnings)]

use std::convert::Infallible;
use std::marker::PhantomData;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::post;
use idempotent_runtime::idempotent;

/// A type with the name `Tx`, as another crate may define.
struct Tx<T>(PhantomData<fn() -> T>);

impl<S: Sync, T> FromRequestParts<S> for Tx<T> {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(PhantomData))
    }
}

trait Tenant: Send + Sync + 'static {
    type Database: Send + Sync + 'static;
    type Postgres: Send + Sync + 'static;
    type Tx: FromRequestParts<()> + Send + Sync + 'static;
}

struct Acme;

impl Tenant for Acme {
    type Database = u8;
    type Postgres = u8;
    type Tx = Tx<u8>;
}

struct Api<T>(PhantomData<fn() -> T>);

impl<T: Tenant> Api<T> {
    #[idempotent]
    async fn of_the_block(tx: Tx<T>, body: String) -> String {
        let Tx(_) = tx;
        body
    }

    #[idempotent]
    async fn of_an_associated_type(tx: Tx<T::Database>, body: String) -> String {
        let Tx(_) = tx;
        body
    }

    #[idempotent]
    async fn named_like_a_database(tx: Tx<T::Postgres>, body: String) -> String {
        let Tx(_) = tx;
        body
    }

    #[idempotent]
    async fn named_like_a_transaction(_tx: T::Tx, body: String) -> String {
        body
    }

    #[idempotent]
    async fn of_a_trait(_tx: <T as Tenant>::Tx, body: String) -> String {
        body
    }

    #[idempotent]
    async fn of_the_function<U: Tenant>(tx: Tx<(T, U)>, body: String) -> String {
        let Tx(_) = tx;
        body
    }
}

fn main() {
    let _: Router = Router::new()
        .route("/block", post(Api::<Acme>::of_the_block))
        .route("/associated", post(Api::<Acme>::of_an_associated_type))
        .route("/named-like-a-database", post(Api::<Acme>::named_like_a_database))
        .route("/named-like-a-transaction", post(Api::<Acme>::named_like_a_transaction))
        .route("/of-a-trait", post(Api::<Acme>::of_a_trait))
        .route("/function", post(Api::<Acme>::of_the_function::<Acme>));
    assert_eq!(idempotent_runtime::policies().count(), 6);
}
