//! The way back in for who has no admin token any more: whoever holds the store, its key and this machine makes a new one.
//!
//! It needs no running control plane and asks nobody for a token, because all that a token protects is open to whoever has the
//! store's key. The token is written down like every change, holds for a day, and lies in a file for its owner alone.

use std::path::PathBuf;
use std::sync::Arc;

use sg_model::{Name, Role};
use sg_runtime::files;
use sg_runtime::metrics::Counter;
use sg_runtime::secret::Secret;
use sg_runtime::tasks::TaskGroup;

use crate::app::{self, AppError};
use crate::bootstrap;
use crate::config::Args;
use crate::ids;
use crate::service::audit::chain::Chain;
use crate::service::change::Call;
use crate::service::tokens::TokenDraft;
use crate::store::Store;
use crate::vault::Vault;
use crate::world::StoreHealth;
use crate::world::keeper::Keeper;

/// Under the data directory.
pub const FILE: &str = "recovered-admin.token";
/// Time enough to make a token that stays.
const DAYS: u32 = 1;
/// Longest wait for the store.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Makes the token and answers where it is.
///
/// # Errors
/// [`AppError`]: the store does not answer, is empty, or does not open; or the file cannot be written.
pub async fn run(args: &Args, store: Arc<dyn Store>) -> Result<PathBuf, AppError> {
    let work = Box::pin(make(args, store));
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(AppError::Failed("the store does not answer".to_owned())),
    }
}

async fn make(args: &Args, store: Arc<dyn Store>) -> Result<PathBuf, AppError> {
    let failed = |error: &dyn std::fmt::Display| AppError::Failed(error.to_string());
    let there = store.get(crate::keys::META_FORMAT).await;
    if there.map_err(|error| failed(&error))?.1.is_none() {
        let text = "the store is empty: there is nothing to recover; start the control plane without --recover-admin";
        return Err(AppError::Usage(text.to_owned()));
    }
    let foundation = bootstrap::establish(&*store, &args.data_dir, &args.store_key_file()).await?;
    let health = StoreHealth::new(Counter::default());
    let (keeper, mut views) = Keeper::new(Vault::new(foundation.key.clone()));
    let mut tasks = TaskGroup::new();
    tasks.spawn("keeper", keeper.run(Arc::clone(&store), health.clone()));
    views.loaded().await;
    let (chain, following) = Chain::new(Arc::clone(&store), foundation.key.clone());
    tasks.spawn("chain", following.run());
    let (core, _authority) = app::core(foundation, store, health, views, chain, args)?;
    let id = ids::new_id('R', ids::now());
    let draft = TokenDraft {
        name: Name::new(format!("recovered-{}", id.to_lowercase())).map_err(|e| failed(&e))?,
        role: Role::Admin,
        gateways: Vec::new(),
        days: DAYS,
    };
    let call = Call::internal("local-recovery", "RecoverAdmin");
    let made = core.create_admin_token(&call, draft).await;
    let (record, secret) = made.map_err(|error| failed(&error))?;
    tasks.abort().await;
    let secret = secret.ok_or_else(|| failed(&"no token was made"))?;
    let path = args.data_dir.join(FILE);
    let line = Secret::new(format!("{}\n", secret.expose()));
    files::write_atomic(&path, line.expose().as_bytes(), files::PRIVATE)
        .map_err(|error| failed(&format!("cannot write {}: {error}", path.display())))?;
    tracing::warn!(token = %record.name, path = %path.display(), days = DAYS, "admin token made; make one that stays with it: sgctl token create NAME --role admin");
    Ok(path)
}
