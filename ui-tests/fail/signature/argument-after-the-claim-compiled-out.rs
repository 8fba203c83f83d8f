use idempotent_runtime::idempotent;

#[idempotent(claim_after = method)]
async fn create_charge(
    #[cfg(all())] method: axum::http::Method,
    #[cfg(any())] gone: NoSuchType,
    #[cfg_attr(all(), cfg(all()))] uri: axum::http::Uri,
    body: String,
) {
    drop((method, uri, body));
}

fn main() {}
