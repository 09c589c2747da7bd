//! What the controller fails at: each is told, and tried again.

use crate::identity::IdentityError;

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("the API server: cannot {what}: {why}")]
    Api { what: String, why: Box<kube::Error> },
    #[error("the API server: no answer within {seconds} s to a request to {what}")]
    Silent { what: String, seconds: u64 },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{name} was changed by somebody else meanwhile")]
    Conflict { name: String },
}

/// One request for one object, bounded by [`crate::limits::API_TIME`].
pub(super) async fn asked<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ControllerError> {
    let time = crate::limits::API_TIME;
    match tokio::time::timeout(time, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
            Err(ControllerError::Conflict { name: what.to_owned() })
        }
        Ok(Err(error)) => Err(ControllerError::Api { what: what.to_owned(), why: Box::new(error) }),
        Err(_) => Err(ControllerError::Silent { what: what.to_owned(), seconds: time.as_secs() }),
    }
}
