use idempotent_runtime::idempotent;

#[idempotent(scop = "charges")]
async fn handler_scope() {}

#[idempotent(tll = "24h")]
async fn handler_ttl() {}

#[idempotent(cahce = [201])]
async fn handler_cache() {}

#[idempotent(cacheif = is_final)]
async fn handler_cache_if() {}

#[idempotent(heder = "x-request-id")]
async fn handler_header() {}

#[idempotent(kee = order)]
async fn handler_key() {}

#[idempotent(require)]
async fn handler_required() {}

#[idempotent(invalidkey = "ignore")]
async fn handler_invalid_key() {}

#[idempotent(method = [POST])]
async fn handler_methods() {}

#[idempotent(calle = user)]
async fn handler_caller() {}

#[idempotent(claimafter = user)]
async fn handler_claim_after() {}

#[idempotent(finger_print = none)]
async fn handler_fingerprint() {}

#[idempotent(inflight = reject)]
async fn handler_in_flight() {}

#[idempotent(leese = "30s")]
async fn handler_lease() {}

#[idempotent(aftercrash = "reject")]
async fn handler_after_crash() {}

#[idempotent(maxbody = "4MiB")]
async fn handler_max_body() {}

#[idempotent(over_size = "rerun")]
async fn handler_oversize() {}

#[idempotent(keep_header = ["set-cookie"])]
async fn handler_keep_headers() {}

#[idempotent(drop_header = ["x-trace"])]
async fn handler_drop_headers() {}

#[idempotent(stores = "payments")]
async fn handler_store() {}

#[idempotent(on_store_eror = "run")]
async fn handler_on_store_error() {}

#[idempotent(crat = "idem")]
async fn handler_crate() {}

#[idempotent(min_key_lenght = 16)]
async fn handler_min_key_length() {}

#[idempotent(keyformat = "uuid")]
async fn handler_key_format() {}

fn main() {}
