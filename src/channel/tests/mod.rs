mod closing;
mod connecting;
mod ejecting;
mod faults;
mod leaving;
mod peers;
mod rig;
