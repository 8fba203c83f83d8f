use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(uri: axum::http::Uri, #[cfg(any())] body: String) {
    drop(uri);
}

fn main() {}
