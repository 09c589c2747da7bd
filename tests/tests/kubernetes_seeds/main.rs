//! The shipped examples in a cluster: objects applied one by one as `kubectl apply` does, a pod's curl that shows each step,
//! and the way back.

mod egress_gateways;
mod ingress;
mod origination;
mod policies;
mod stage;
