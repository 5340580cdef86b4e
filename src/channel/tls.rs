/// stub
#[derive(Debug, Clone)]
pub struct ChannelTls;
