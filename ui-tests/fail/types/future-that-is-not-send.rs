use std::rc::Rc;

use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(body: String) -> String {
    let local = Rc::new(body);
    std::future::ready(()).await;
    local.to_string()
}

fn main() {}
