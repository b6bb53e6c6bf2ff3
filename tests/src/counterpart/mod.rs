//! Real programs at both ends of the product, each run from the system's packages in a folder of
//! its own and without root's rights where it refuses them.

pub mod dns;
pub mod etcd;
pub mod nginx;
pub mod postgres;
pub mod proxies;
pub mod redis;
