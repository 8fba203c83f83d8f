use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(uri: axum::http::Uri, #[cfg(any())] body: String) {
    drop(uri);
}

#[idempotent]
async fn create_refund(uri: axum::http::Uri, #[cfg_attr(all(), cfg(any()))] body: String) {
    drop(uri);
}

fn main() {}
