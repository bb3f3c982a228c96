//! Wherry's integration tests, one binary. `tidy` holds the house rules; `sim` is the seeded
//! simulation of the pure parts; the other modules drive real processes with real clients and run
//! when `WHERRY_L3` is set (`make test`).

mod aggregated;
mod apps;
mod attacks;
mod autonomy;
mod backup;
mod chaos;
mod clients;
mod cluster;
mod crash;
mod dashboard;
mod dev;
mod disk;
mod features;
mod kube_rs;
mod kubectl;
mod members;
mod network;
mod push;
mod quota;
mod registry;
mod scheduling;
mod served;
mod sim;
mod streams;
mod tidy;
mod toolbox;
mod traffic;
mod walls;
mod workloads;
