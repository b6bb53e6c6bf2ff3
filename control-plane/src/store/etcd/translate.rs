//! Between the words of the store and those of etcd, with the namespace put on and taken off.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, EventType, KeyValue as EtcdKeyValue, PutOptions,
    Txn as EtcdTxn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::super::types::{Compare, Event, KeyValue, Revision, Txn, Write};

/// What all keys start with in etcd: the prefix of the URL and a slash.
#[derive(Debug, Clone)]
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}/"))
    }

    /// A key or prefix as etcd has it.
    pub(super) fn put_on(&self, key: &str) -> String {
        format!("{}{key}", self.0)
    }

    /// A key as we have it; `None` if it is no text, which nobody of us wrote.
    fn take_off(&self, key: &[u8]) -> Option<String> {
        std::str::from_utf8(key)
            .ok()?
            .strip_prefix(&self.0)
            .map(str::to_owned)
    }

    /// An entry as we have it.
    pub(super) fn entry(&self, kv: &EtcdKeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.take_off(kv.key())?,
            value: Bytes::copy_from_slice(kv.value()),
            mod_revision: revision(kv.mod_revision()),
            create_revision: revision(kv.create_revision()),
        })
    }

    /// An event as we have it, and its revision.
    pub(super) fn event(&self, event: &etcd_client::Event) -> Option<(Revision, Event)> {
        let kv = event.kv()?;
        let translated = match event.event_type() {
            EventType::Put => Event::Put(self.entry(kv)?),
            EventType::Delete => Event::Delete {
                key: self.take_off(kv.key())?,
            },
        };
        Some((revision(kv.mod_revision()), translated))
    }

    /// A transaction for etcd; `leases` has one for each ttl in it.
    pub(super) fn txn(&self, txn: &Txn, leases: &HashMap<Duration, i64>) -> EtcdTxn {
        let compares: Vec<_> = txn.compares.iter().map(|c| self.compare(c)).collect();
        let writes: Vec<_> = txn
            .writes
            .iter()
            .map(|write| match write {
                Write::Put { key, value, ttl } => {
                    let lease = ttl.and_then(|ttl| leases.get(&ttl).copied());
                    let options = lease.map(|id| PutOptions::new().with_lease(id));
                    TxnOp::put(self.put_on(key), value.as_ref(), options)
                }
                Write::Delete { key } => TxnOp::delete(self.put_on(key), None),
            })
            .collect();
        EtcdTxn::new()
            .when(compares)
            .and_then(writes)
            .or_else(self.gets(txn.read_on_conflict.iter().map(String::as_str)))
    }

    /// A transaction that only reads these keys.
    pub(super) fn read_keys<'a>(&self, keys: impl Iterator<Item = &'a str>) -> EtcdTxn {
        EtcdTxn::new().and_then(self.gets(keys))
    }

    fn gets<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Vec<TxnOp> {
        keys.map(|key| TxnOp::get(self.put_on(key), None)).collect()
    }

    /// The answers to gets, in their order.
    pub(super) fn answers(&self, response: &TxnResponse) -> Vec<Option<KeyValue>> {
        response
            .op_responses()
            .iter()
            .map(|op| match op {
                TxnOpResponse::Get(get) => get.kvs().first().and_then(|kv| self.entry(kv)),
                TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
            })
            .collect()
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        let key = self.put_on(compare.subject());
        match compare {
            Compare::ModRevision { revision, .. } => {
                let raw = i64::try_from(revision.get()).unwrap_or(i64::MAX);
                EtcdCompare::mod_revision(key, CompareOp::Equal, raw)
            }
            Compare::Absent { .. } => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
            Compare::Present { .. } => EtcdCompare::create_revision(key, CompareOp::Greater, 0),
            // True of a range exactly when it is empty.
            Compare::PrefixEmpty { .. } => {
                EtcdCompare::version(key, CompareOp::Equal, 0).with_prefix()
            }
        }
    }
}

/// A revision of etcd, which counts with a sign.
pub(super) fn revision(raw: i64) -> Revision {
    Revision::new(u64::try_from(raw).unwrap_or(0))
}

/// A revision for etcd.
pub(super) fn raw(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// The end of the range of keys that start with `prefix`.
pub(super) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Only 0xff bytes, which no text has: etcd's word for "to the end".
    vec![0]
}
