//! The stream of batches that a watch yields.
//!
//! Not a machine that survives its store: a watch ends, and [`super::follow`] opens the next one.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};

use super::error::WatchError;
use super::types::Batch;

type Batches = dyn Stream<Item = Result<Batch, WatchError>> + Send;

/// Whole revisions in rising order, then one error, then nothing.
pub struct WatchStream(Option<Pin<Box<Batches>>>);

impl WatchStream {
    /// Wraps the stream of a store.
    pub(crate) fn new(
        stream: impl Stream<Item = Result<Batch, WatchError>> + Send + 'static,
    ) -> Self {
        Self(Some(Box::pin(stream)))
    }

    /// Waits for the next revision that changed something under the prefix.
    ///
    /// Cancel safe. Once it has failed it fails for ever with [`WatchError::Ended`].
    ///
    /// # Errors
    /// [`WatchError`], as the last item of every watch.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        match StreamExt::next(self).await {
            Some(item) => item,
            None => Err(WatchError::Ended("the watch is over".to_owned())),
        }
    }
}

impl Stream for WatchStream {
    type Item = Result<Batch, WatchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(inner) = self.0.as_mut() else {
            return Poll::Ready(None);
        };
        let item = std::task::ready!(inner.as_mut().poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(item)
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream")
            .field("ended", &self.0.is_none())
            .finish()
    }
}
