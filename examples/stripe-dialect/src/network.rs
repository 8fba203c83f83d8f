//! The company that moves the money.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

/// A request to the card network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// In the smallest unit of the currency.
    pub amount: u64,
    /// Three lower-case letters.
    pub currency: String,
    /// The payment method, such as `pm_card_visa`.
    pub payment_method: String,
}

/// An answer of the card network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorisation {
    /// The money moves: that of this charge, or that of the first charge under this reference.
    Approved {
        /// In the smallest unit of the currency.
        amount: u64,
        /// Three lower-case letters.
        currency: String,
    },
    /// The card network declines the charge.
    Declined {
        /// Stripe's code for the reason.
        decline_code: &'static str,
    },
    /// The payment method is not known.
    UnknownCard,
}

/// Moves money. It is asked again with the same reference if a process died before it answered its client.
pub trait CardNetwork: Send + Sync + 'static {
    /// Charges a card, once for each reference.
    fn charge(&self, reference: &str, charge: Charge) -> BoxFuture<'static, Authorisation>;
}

/// Some of Stripe's test cards. No money moves.
pub struct TestCards;

impl CardNetwork for TestCards {
    fn charge(&self, _reference: &str, charge: Charge) -> BoxFuture<'static, Authorisation> {
        let authorisation = match charge.payment_method.as_str() {
            "pm_card_visa" | "pm_card_mastercard" => {
                Authorisation::Approved { amount: charge.amount, currency: charge.currency }
            }
            "pm_card_chargeDeclined" => Authorisation::Declined { decline_code: "generic_decline" },
            "pm_card_chargeDeclinedInsufficientFunds" => Authorisation::Declined { decline_code: "insufficient_funds" },
            _ => Authorisation::UnknownCard,
        };
        ready(authorisation).boxed()
    }
}
