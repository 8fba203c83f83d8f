use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(
    _1: axum::http::Uri,
    _2: axum::http::Uri,
    _3: axum::http::Uri,
    _4: axum::http::Uri,
    _5: axum::http::Uri,
    _6: axum::http::Uri,
    _7: axum::http::Uri,
    _8: axum::http::Uri,
    _9: axum::http::Uri,
    _10: axum::http::Uri,
    _11: axum::http::Uri,
    _12: axum::http::Uri,
    _13: axum::http::Uri,
    _14: axum::http::Uri,
    _15: axum::http::Uri,
    _16: axum::http::Uri,
    _17: axum::http::Uri,
) {
}

fn main() {}
