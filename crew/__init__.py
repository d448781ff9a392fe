"""RPC over RabbitMQ."""
