//! A registration that leaves: its keys and leases, out of etcd within a limit, and what the log says of it.

use std::time::Duration;

use tokio::time::timeout;

use super::claims::Claims;
use crate::instance::Instance;
use crate::targets::REGISTRATION;

/// Takes out all that may be in etcd. Returns whether nothing is left there that clients could know of.
pub(super) async fn leave(claims: &mut Claims, instance: &Instance) -> bool {
    let service = claims.service().clone();
    let was_registered = claims.was_registered();
    // Nothing that clients could know of is worth a wait: a lease without a key ends by itself.
    let limit = if claims.may_be_known() { LEAVE_LIMIT } else { REVOKE_LIMIT };
    let taken_out = timeout(limit, claims.take_out(instance)).await;
    let address = &instance.address;
    match taken_out {
        Ok(true) if was_registered => tracing::info!(target: REGISTRATION, %service, %address, "deregistered"),
        Ok(_) | Err(_) if !claims.may_be_known() => {
            tracing::info!(target: REGISTRATION, %service, %address, "left; it was never registered");
        }
        Ok(true) => tracing::info!(target: REGISTRATION, %service, %address, "left before it was registered"),
        Ok(false) => {
            tracing::warn!(target: REGISTRATION, %service, "etcd refused the deregistration; the lease will expire");
        }
        Err(_) => {
            let leases = claims.left_over();
            tracing::warn!(
                target: REGISTRATION,
                %service,
                ?leases,
                "etcd did not take the deregistration in time; the leases will expire"
            );
        }
    }
    matches!(taken_out, Ok(true)) || !claims.may_be_known()
}

/// The longest that a leave may take while etcd is unreachable: a process must end.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// The longest that the revocation of a lease may take that no key was claimed under: a few round trips.
const REVOKE_LIMIT: Duration = Duration::from_millis(250);
