mod peers;
