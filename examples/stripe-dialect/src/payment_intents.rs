//! `/v1/payment_intents`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{FromRequest, Path, Request, State};
use idempotent_runtime::{Idempotency, idempotent};
use serde::{Deserialize, Serialize};

use crate::App;
use crate::accounts::Account;
use crate::books::unique;
use crate::error::ApiError;
use crate::network::{Authorisation, Charge};
use crate::parameters::Parameters;

/// Creates a payment intent, and pays it with `confirm=true`.
///
/// 402 is final, as with Stripe: a retry of a declined payment gets the same decline, and the card network is not asked
/// again.
#[idempotent(scope = "payment_intents", ttl = "24h", cache = [200, 402], caller = account.id)]
pub(crate) async fn create(
    State(app): State<App>,
    account: Account,
    idempotency: Idempotency,
    new: NewPaymentIntent,
) -> Result<Json<PaymentIntent>, ApiError> {
    let reference = idempotency.downstream_key("card-network");
    let intent = match new.charge() {
        None => new.unpaid(),
        Some(charge) => match app.network.charge(&reference, charge.clone()).await {
            // The network has moved another amount under this reference, so booking this amount would make the books
            // wrong.
            Authorisation::Approved { amount, currency }
                if (amount, &currency) != (charge.amount, &charge.currency) =>
            {
                return Err(ApiError::OtherCharge);
            }
            Authorisation::Approved { .. } => new.paid(),
            Authorisation::Declined { decline_code } => new.declined(decline_code),
            Authorisation::UnknownCard => return Err(ApiError::NoSuchPaymentMethod(charge.payment_method)),
        },
    };
    let intent = app.books.enter_once(&account, &reference, intent).await?;
    if intent.last_payment_error.is_some() { Err(ApiError::Declined(Box::new(intent))) } else { Ok(Json(intent)) }
}

pub(crate) async fn retrieve(
    State(app): State<App>,
    account: Account,
    Path(id): Path<String>,
) -> Result<Json<PaymentIntent>, ApiError> {
    let found = app.books.find(&account, &id).await?;
    found.map(Json).ok_or(ApiError::NoSuchPaymentIntent(id))
}

/// A validated request for a payment intent.
pub(crate) struct NewPaymentIntent {
    amount: u64,
    currency: String,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    payment_method: Option<String>,
    confirm: bool,
}

impl<S: Send + Sync> FromRequest<S> for NewPaymentIntent {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let mut parameters = Parameters::from_request(request, state).await?;
        let new = Self {
            amount: amount(&parameters.required_text("amount")?)?,
            currency: currency(parameters.required_text("currency")?)?,
            description: parameters.text("description")?,
            metadata: parameters.table("metadata")?,
            payment_method: parameters.text("payment_method")?,
            confirm: parameters.flag("confirm")?,
        };
        parameters.end()?;
        if new.confirm && new.payment_method.is_none() {
            return Err(ApiError::MissingParameter("payment_method"));
        }
        Ok(new)
    }
}

fn amount(text: &str) -> Result<u64, ApiError> {
    // Stripe's largest amount has eight digits.
    text.parse().ok().filter(|amount| (1..=99_999_999).contains(amount)).ok_or_else(|| ApiError::InvalidParameter {
        name: "amount",
        code: Some("parameter_invalid_integer"),
        message: "`amount` must be a whole number from 1 to 99999999, in the smallest unit of the currency".to_owned(),
    })
}

fn currency(text: String) -> Result<String, ApiError> {
    let is_code = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase());
    if is_code {
        Ok(text)
    } else {
        Err(ApiError::invalid("currency", "must be three lower-case letters, such as `eur`"))
    }
}

impl NewPaymentIntent {
    /// The request to the card network, if the payment is to be confirmed.
    fn charge(&self) -> Option<Charge> {
        let payment_method = self.payment_method.clone().filter(|_| self.confirm)?;
        Some(Charge { amount: self.amount, currency: self.currency.clone(), payment_method })
    }

    fn unpaid(self) -> PaymentIntent {
        let status =
            if self.payment_method.is_some() { Status::RequiresConfirmation } else { Status::RequiresPaymentMethod };
        self.intent(status, 0, None)
    }

    fn paid(self) -> PaymentIntent {
        let received = self.amount;
        self.intent(Status::Succeeded, received, None)
    }

    fn declined(self, decline_code: &str) -> PaymentIntent {
        let error = PaymentError {
            r#type: "card_error".to_owned(),
            code: "card_declined".to_owned(),
            decline_code: decline_code.to_owned(),
            message: "The card was declined".to_owned(),
        };
        self.intent(Status::RequiresPaymentMethod, 0, Some(error))
    }

    fn intent(self, status: Status, amount_received: u64, last_payment_error: Option<PaymentError>) -> PaymentIntent {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        PaymentIntent {
            id: unique("pi"),
            object: "payment_intent".to_owned(),
            amount: self.amount,
            amount_capturable: 0,
            amount_received,
            capture_method: "automatic".to_owned(),
            confirmation_method: "automatic".to_owned(),
            created: now.as_secs(),
            currency: self.currency,
            description: self.description,
            last_payment_error,
            livemode: false,
            metadata: self.metadata,
            payment_method: self.payment_method,
            payment_method_types: vec!["card".to_owned()],
            status,
        }
    }
}

/// A payment intent in Stripe's format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PaymentIntent {
    pub(crate) id: String,
    object: String,
    amount: u64,
    amount_capturable: u64,
    amount_received: u64,
    capture_method: String,
    confirmation_method: String,
    created: u64,
    currency: String,
    description: Option<String>,
    pub(crate) last_payment_error: Option<PaymentError>,
    livemode: bool,
    metadata: BTreeMap<String, String>,
    payment_method: Option<String>,
    payment_method_types: Vec<String>,
    status: Status,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    Succeeded,
}

/// Why a payment failed: the `error` of the 402, and what the payment intent stores.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PaymentError {
    r#type: String,
    code: String,
    decline_code: String,
    message: String,
}
