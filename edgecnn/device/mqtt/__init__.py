"""Publish a stream's state on an MQTT broker, for Home Assistant and others. Needs the extra `mqtt`; nothing else imports this package."""
