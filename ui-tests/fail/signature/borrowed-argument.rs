use idempotent_runtime::idempotent;

struct Scratch<'a>(&'a [u8]);

#[idempotent]
async fn elided(body: &str) -> usize {
    body.len()
}

#[idempotent]
async fn named<'a>(scratch: Scratch<'a>, body: String) -> usize {
    scratch.0.len() + body.len()
}

#[idempotent]
async fn anonymous(scratch: Scratch<'_>, body: &mut String) -> usize {
    scratch.0.len() + body.len()
}

fn main() {}
