//! The results of every key, in the ledger and at the card network.

use std::collections::HashMap;

use serde::Deserialize;

use crate::servers::Fleet;

#[derive(Deserialize)]
struct Line {
    kind: String,
    key: String,
    reference: String,
}

#[derive(Deserialize)]
struct NetworkCharge {
    reference: String,
    times_asked: u32,
}

pub(crate) struct Books {
    ledger: HashMap<String, Vec<Line>>,
    /// How often the network was asked for each reference.
    network: HashMap<String, u32>,
}

impl Books {
    pub(crate) async fn of(fleet: &Fleet) -> Self {
        let mut ledger = HashMap::<_, Vec<_>>::new();
        for line in fleet.get::<Vec<Line>>("/ledger").await {
            ledger.entry(line.key.clone()).or_default().push(line);
        }
        let network = fleet.get::<Vec<NetworkCharge>>("/network").await;
        Self { ledger, network: network.into_iter().map(|charge| (charge.reference, charge.times_asked)).collect() }
    }

    fn lines(&self, key: &str) -> &[Line] {
        self.ledger.get(key).map_or(&[], Vec::as_slice)
    }

    /// How many charges the ledger has under the key.
    pub(crate) fn charges(&self, key: &str) -> usize {
        self.lines(key).iter().filter(|line| line.kind == "charge").count()
    }

    /// How many refunds the ledger has under the key.
    pub(crate) fn refunds(&self, key: &str) -> usize {
        self.lines(key).iter().filter(|line| line.kind == "refund").count()
    }

    /// How often the network was asked for the entries that the ledger has under the key.
    pub(crate) fn times_asked(&self, key: &str) -> u32 {
        self.lines(key).iter().filter_map(|line| self.network.get(&line.reference)).sum()
    }

    /// The largest number of times that the network was asked for one reference.
    pub(crate) fn most_often_asked(&self) -> Option<u32> {
        self.network.values().copied().max()
    }

    /// The number of references under which the network has moved money.
    pub(crate) fn money_moved(&self) -> usize {
        self.network.len()
    }
}
