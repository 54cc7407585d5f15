//! The contract `integrity`: short looks at this store's own disk.

use crate::service::ContentService;
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::integrity::{Check, Mend};

impl Handler<Call<Check>> for ContentService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.check(&call.body))
    }
}

impl Handler<Call<Mend>> for ContentService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.mend(&call.body))
    }
}
