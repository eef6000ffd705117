"""What a type checker must refuse: each line that is marked must have one of the errors that it names."""

import hivewire as hw


async def main(protocol: hw.Protocol, delivery: hw.Delivery) -> None:
    hw.Message(type="task")  # refused: call-arg
    hw.Message("task", "me")  # refused: call-arg misc
    message = hw.Message(type="task", sender="me", to="coder")
    message.to = "another"  # refused: misc
    await protocol.send("text")  # refused: arg-type
    await protocol.send(message, delay="soon")  # refused: call-arg
    receipts: list[str] = await protocol.send_many([message])  # refused: assignment
    print(receipts)
    await delivery.reject()  # refused: call-arg
    await delivery.nack("2")  # refused: arg-type
    hw.Worker("coder", mode="fastest")  # refused: arg-type
